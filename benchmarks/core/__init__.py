"""What every report needs: measurements, machine, command, Markdown, plots, the summary of figures."""
