"""The controller: the only writer of intent."""
