/* The part of scripts/sanitize-canary.rs that is C: a read where it is told to. */
unsigned char read_byte(const unsigned char *bytes, unsigned long at) { return bytes[at]; }
