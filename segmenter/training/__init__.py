"""Training, the work behind `segmenter.train` and `segmenter.probe`: `run` puts together what the other files each do.

options -> data (augment), network, state -> loop (learner, schedule, log, interruption) -> metrics
"""
