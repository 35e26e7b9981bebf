"""What every benchmark shares: command line, store of measurements, report builder, plots, summary of figures."""
