"""Labels that are probably wrong: found by models that have not seen the images, corrected in data/corrections.csv."""
