"""How good a model is: objective questions, people's ratings, held-out loss, and the tables of all that."""
