"""Files of long work, from which it resumes, and of what it found."""
