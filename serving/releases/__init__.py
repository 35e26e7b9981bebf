"""How a release comes about, is put in force and rolled back."""
