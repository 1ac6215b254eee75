"""Fat LTO and ThinLTO, each in a loop of its own. Empty until the main loop has something to hand over."""
