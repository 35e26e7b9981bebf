"""The tables' files: replace a day, append to a ledger, read what is there."""
