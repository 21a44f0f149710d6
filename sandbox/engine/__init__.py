"""Engines: how a plan is carried out."""
