"""How good a model is: objective questions, people's ratings, held-out loss, and tables of the results."""
