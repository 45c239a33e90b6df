"""Guests that run by themselves: one supervisor process each, its folder, and how commands talk to it. No daemon."""
