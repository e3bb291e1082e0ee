package main

func selftest(name string) error { return nil }
