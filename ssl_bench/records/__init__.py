"""The run folder: records of runs, results and predictions, written whole or not at all."""
