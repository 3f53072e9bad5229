"""What became of a deployed model, for who answers for it (`monitor`): one page over a folder of results.

`runs.py` reads what runs and their events left, `reviews.py` what people say of the maps; `against_card.py` holds the
rules by which figures are compared with the model's card, `look_first.py` those by which slides are listed;
`retraining.py` plans what leads to a new model; `figures.py` puts all together, `page.py` shows it, `written.py` writes
it. Nothing here computes a map, and figures of two models are never put into one.
"""
