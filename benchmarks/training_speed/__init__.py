"""Training speed beside RecBole's and RecTools' SASRec."""
