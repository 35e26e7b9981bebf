"""Checks of texts from outside and from the model: injected instructions, markup, echo, claims without a fact."""
