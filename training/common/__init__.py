"""How a command ends, what it prints, and what it does to files: nothing here knows of models or data."""
