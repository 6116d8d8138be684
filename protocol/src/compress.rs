//! The six encodings of a tensor's buffer: bytes to items and back, exact to Python.
