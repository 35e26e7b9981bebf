"""Descriptions at scale: what is asked, what it may cost, how it is paid for once, and which text a row gets."""
