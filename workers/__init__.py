"""Workers: what runs one work item, and the seam to the compilers. Import the modules themselves."""
