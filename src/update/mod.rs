//! THE PROCEDURE: install, journal, resume, health.
