"""What netweft's services share; it knows none of them."""
