"""The leaf package: every service takes its types, codecs and plumbing from here, and none is known here."""
