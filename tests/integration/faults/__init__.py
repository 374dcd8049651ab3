"""Whatever happens to a run: kills, full disks, signals, lost machines. The labels are made up, the
rest is real.
"""
