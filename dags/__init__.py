"""Airflow wiring: which stage runs when. Nothing here computes."""
