"""Rulesets of other firewalls, as `nft -f` takes them."""
