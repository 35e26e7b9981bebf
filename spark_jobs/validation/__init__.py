"""What a text may not be: orders to a model, markup, echo, claims that its facts do not support."""
