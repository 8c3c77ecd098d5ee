"""Estimators: how votes are made of what a population did."""
