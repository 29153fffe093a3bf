"""Attacks on a callable `images -> logits`, and the threat models they serve. No Lightning."""
