"""What depends on the machine and its processes: distributed work, number formats, seeds."""
