"""Other libraries' SASRec, each run in a virtual environment of its own."""
