"""The study: do the claims hold on real text, at sizes that one GPU trains in minutes? One command an experiment."""
