"""Enrich: joins raw events with what is known, and stores them."""
