"""Descriptions at scale: prompts, caps, the ledger, live and batch generation, metrics and cost forecasts."""
