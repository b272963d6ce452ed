"""Segmenter: proposes, from recorded flows, who may call whom."""
