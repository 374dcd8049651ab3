"""The local web explorer of runs: search, see, judge and correct relations in the browser."""
