"""Projections of the rooms into the account store: local memberships, the directory."""
