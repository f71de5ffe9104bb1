"""Drift: does live traffic still look like what training saw? Decided on counts, within a budget.

profile      what training saw, as bins and their counts; counts any rows in the same bins
windows      the counts of live rows, kept by the hour and never recounted
statistics   exact tests of one count against another; effect sizes that people know
assessment   counts of a window against the profile → findings, at a threshold
budget       "one false alarm in 30 days" → that threshold
"""
