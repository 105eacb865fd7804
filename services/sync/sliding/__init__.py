"""Simplified sliding sync: windows over a user's rooms instead of all of them. Spec: MSC4186."""
