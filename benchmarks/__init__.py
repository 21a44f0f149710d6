"""Side by side with what users would pick instead: ratios of medians, measured in one run."""
