"""Taking part in a run: the way to the others, for our own trainer and for anybody's loop. No framework in here."""
