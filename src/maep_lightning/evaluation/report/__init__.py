"""What a reader gets: a module for each file that is written.

`write` writes them all: `report.md` (`markdown`), `report.png` (`figure`), `report.html` (`html`, its images from
`gallery`), `audit.csv` (`audit`) and `robustbench.json` (`robustbench`).
"""
