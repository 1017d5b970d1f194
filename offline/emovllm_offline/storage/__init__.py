"""Files of long work, from which it resumes."""
