"""Git and DVC: revisions, whether results are fresh and whole, and the way back after a crash."""
