// Before anything is drawn: the theme that was chosen here last; without a choice, the system's.
"use strict";
{
  const chosen = localStorage.getItem("mlops-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
