//! Starts real Python peers for the tests and talks to them; nothing of the product lives here.
