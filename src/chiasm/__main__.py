from chiasm.cli import main

main()
