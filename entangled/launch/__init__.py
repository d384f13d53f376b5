"""Starts role processes by name and watches over them."""
