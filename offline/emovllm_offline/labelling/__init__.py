"""Labels by hand: a page on which a person says what each text shows."""
