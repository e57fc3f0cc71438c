"""Everything that talks to a model that training made."""
