"""Airflow: which stage runs when. Nothing is computed here."""
